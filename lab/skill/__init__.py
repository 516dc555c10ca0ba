"""Skill."""
