"""MultiDoc2Dial: dialogues about documents, from its official files."""
