"""What is shown of the study: its seeds, the measures of an eval, and what they are called."""

from collections.abc import Mapping, Sequence

SEEDS = (0, 1, 2)
"""The seeds that a whole study has."""
LAST = 3
"""The iteration that a whole run ends with."""
FIRST = "cpu-0"
COMPLIANCE, REFUSAL, OVERREFUSAL = "safety.harmful_compliance", "safety.refusal", "overrefusal.refusal"
HELPFULNESS, TWINS = "overrefusal.helpfulness", "overrefusal.twin_discrimination"
TOXICITY, LEGAL, CAPABILITY = "toxicity.expected_max", "legal.accuracy", "capability.accuracy"
DEGENERATION = "capability.degeneration"
MEASURES: Mapping[tuple[str, str], str] = {
    (COMPLIANCE, "all"): "harmful compliance",
    (COMPLIANCE, "harmbench"): "… HarmBench",
    (COMPLIANCE, "strongreject"): "… StrongREJECT",
    (REFUSAL, "all"): "refusal of harmful requests",
    (OVERREFUSAL, "all"): "over-refusal",
    (HELPFULNESS, "all"): "helpfulness",
    (TWINS, "all"): "twin discrimination",
    ("toxicity.mean", "all"): "toxicity, mean",
    (TOXICITY, "all"): "toxicity, expected maximum",
    (LEGAL, "all"): "legal accuracy",
    (LEGAL, "us_tort_law"): "… tort law",
    (LEGAL, "privacy_policy_qa"): "… privacy policies",
    (LEGAL, "contract_qa"): "… contracts",
    ("legal.balanced_accuracy", "all"): "legal accuracy, balanced",
    ("legal.gold_logprob", "all"): "legal, log-probability of the right option",
    (CAPABILITY, "all"): "capability (BoolQ), accuracy",
    ("capability.gold_logprob", "all"): "capability, log-probability of the right option",
    (DEGENERATION, "all"): "degeneration",
}
"""What is shown of an eval, by metric and category, and what it is called."""
NAMES = {metric: name for (metric, part), name in MEASURES.items() if part == "all"}
SIDE = {COMPLIANCE: "compliance", OVERREFUSAL: "over-refusal", HELPFULNESS: "helpfulness", TWINS: "twins"}


def expected(seeds: Sequence[int]) -> list[int]:
    """Those of a whole study, and further ones that are there."""
    return sorted({*SEEDS, *seeds})
