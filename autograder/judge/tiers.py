"""How well a student's code is shut in on this machine: T0, T1 or T2."""

TIERS = ("T0", "T1", "T2")
NOT_FOR_GRADES = "T0: not for grades"


def machine_tier() -> str:
    """The strongest tier that this machine gives: T0 is a plain process, without namespaces, Landlock or seccomp."""
    return "T0"


def at_least(tier: str, minimum: str) -> bool:
    """Whether a verdict made in `tier` satisfies a course that asks for `minimum`."""
    return TIERS.index(tier) >= TIERS.index(minimum)
