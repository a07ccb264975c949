"""Is it true? Answers, scores, figures with intervals, reports."""
