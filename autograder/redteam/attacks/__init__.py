"""The attacks, one module per family. Nothing here is called: the text of each function travels into a notebook."""
