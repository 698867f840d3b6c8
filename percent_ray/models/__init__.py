"""Text-to-image flow models behind one Protocol."""
