"""Judging what a cascade draws: suites of prompts, the toybox detector, verdicts and their intervals."""
