"""From numbers to verdicts: statements, claims, findings, effects, and what they become on a page."""
