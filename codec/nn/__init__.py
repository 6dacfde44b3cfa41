"""Building blocks of codecs: convolutional stacks, quantizers, discriminators, losses."""
