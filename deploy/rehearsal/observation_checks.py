"""Checks of what analyses are made of: all that was there in time, once, and nothing else."""

from deploy.rehearsal.case import Case, Told

__all__ = ["counts", "duplicates", "observations", "silence", "storage"]


def storage(case: Case) -> Told:
    """Every file was sent, and is in the store with all its values."""
    sent = {s.name: s.batch_id for s in case.evidence.sendings}
    for delivery in case.plan:
        content = case.contents[delivery.name]
        if not content.data:
            continue
        batch = sent.get(delivery.name)
        if batch is None:
            yield delivery.name, "was not sent"
        elif case.evidence.stored.get(batch) != len(content.seconds):
            yield (
                delivery.name,
                f"expected {len(content.seconds)} values in the store; got "
                f"{case.evidence.stored.get(batch)}",
            )


def observations(case: Case) -> Told:
    """All values that had arrived by the cut-off entered, no others did."""
    names = {s.batch_id: s.name for s in reversed(case.evidence.sendings)}
    for analysis in case.evidence.analyses:
        wanted = case.expected(analysis)
        for batch, values in wanted.must.items():
            use = analysis.batches.get(batch)
            if use is None:
                yield analysis.key, f"{names[batch]} is missing: {values} values in time"
            elif use.rows != values or use.late:
                yield (
                    analysis.key,
                    f"{names[batch]}: expected {values} values, none late; got {use.rows}, of "
                    f"which {use.late} late",
                )
            elif not use.entered and batch not in wanted.copies:
                yield analysis.key, f"{names[batch]}: none of {values} values entered"
        for batch, use in analysis.batches.items():
            known = batch in wanted.must or batch in wanted.may
            if not known and use.entered:
                name = names.get(batch, f"the unknown upload {batch}")
                yield analysis.key, f"{name} came after the cut-off; {use.entered} values entered"


def counts(case: Case) -> Told:
    """The manifest counts as many values in use as the feedback holds."""
    for analysis in case.evidence.analyses:
        if analysis.counted != analysis.used:
            yield (
                analysis.key,
                f"the manifest counts {analysis.counted} values in use, the feedback holds "
                f"{analysis.used}",
            )


def duplicates(case: Case) -> Told:
    """What was sent twice was used once; the same bytes are the same upload."""
    sent = {s.name: s.batch_id for s in case.evidence.sendings}
    for delivery in case.plan:
        same = sent.get(delivery.name) == sent.get(delivery.copy_of)
        if delivery.copy_of and same is not delivery.same_bytes:
            yield delivery.name, f"expected {'the' if delivery.same_bytes else 'another'} upload"
    for analysis in case.evidence.analyses:
        wanted = case.expected(analysis)
        if analysis.repeated:
            yield analysis.key, f"{analysis.repeated} values are used more than once"
        for batch in wanted.copies & set(wanted.must):
            use = analysis.batches.get(batch)
            if use and (use.entered or not use.duplicates):
                yield (
                    analysis.key,
                    f"a repeated file: expected its {use.rows} values to be duplicates; "
                    f"{use.duplicates} are, {use.entered} entered",
                )


def silence(case: Case) -> Told:
    """An analysis without observations says so, and no other does."""
    for analysis in case.evidence.analyses:
        wanted, said = case.expected(analysis), "zero_observations" in analysis.flags
        if wanted.empty and not said:
            yield analysis.key, "expected the flag zero_observations"
        if said and (analysis.used or any(wanted.must.values())):
            yield (
                analysis.key,
                f"says zero_observations; {sum(wanted.must.values())} values were in time, "
                f"{analysis.used} were used",
            )
