"""Language models over codec tokens: layouts, models, decoding, training. They see token interfaces, never a codec."""

if __name__ == "lm":
    raise ImportError("this package is called xcodec_lm.lm; write `import xcodec_lm.lm`")
