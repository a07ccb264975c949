"""Whatever runs a model."""

ENGINES = ("auto", "transformers", "vllm", "server", "ray")
