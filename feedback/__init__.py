"""Which answer is better: labels, verdicts and their arithmetic."""
