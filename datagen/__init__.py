"""What models say about videos: clips, captions, contexts, questions, responses, pairs."""
