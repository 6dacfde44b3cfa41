"""Text-to-sound: a GPT conditioned on CLAP."""
