"""Zero-shot text to speech."""
