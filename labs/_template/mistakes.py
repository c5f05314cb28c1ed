"""Plausible wrong answers, at least five per code question, each with the text for the student who made it.

Say what the student did, how we can tell, and where to look; never the corrected line.
"""

from autograder import mistake


@mistake(
    "center",
    says="You subtracted one mean for the whole tensor. Look at the sum of a single row: each has a mean of its own.",
)
def one_mean_for_all(x):
    return x - x.mean()


@mistake(
    "center",
    says="You removed the mean of each column: the first axis, not the last. A row is what lies along the last axis.",
)
def wrong_axis(x):
    return x - x.mean(dim=0, keepdim=True)


@mistake(
    "center",
    says="The sign is turned: your rows sum to zero, and every element is the negative of ours.",
)
def sign_flipped(x):
    return x.mean(dim=-1, keepdim=True) - x


@mistake(
    "center",
    says="You also divided by the standard deviation. That is the next step of a layer norm, and not asked here.",
)
def also_scaled(x):
    centered = x - x.mean(dim=-1, keepdim=True)
    return centered / centered.std(dim=-1, keepdim=True, correction=0)


@mistake(
    "center",
    says="You subtracted the median. It leaves half of the row on each side, but the row does not sum to zero.",
)
def median_instead(x):
    return x - x.median(dim=-1, keepdim=True).values
