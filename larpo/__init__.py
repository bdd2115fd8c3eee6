"""larpo: LLM alignment as retriever optimization (Jin et al., ICML 2025, arXiv 2502.03699), on Ray."""

__version__ = "0.1.0"
