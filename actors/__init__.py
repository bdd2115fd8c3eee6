"""The system: Ray actors around vLLM, a reward model and a Ray Train group of DeepSpeed workers."""
