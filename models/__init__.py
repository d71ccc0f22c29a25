"""Model families written in the language."""
