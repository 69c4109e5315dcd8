"""Fine-tuning runs behind the findings: `python -m experiments --help`."""
