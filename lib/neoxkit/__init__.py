"""neoxkit: fine-tune GPT-NeoX-style language models from JupyterLab, with DeepSpeed."""

__version__ = "0.1.0"
