"""Models that read images or sound with text: built tiny, fed, and compared."""
