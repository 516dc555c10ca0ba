"""What an assimilation must beat: climatology, persistence, optimal interpolation."""
