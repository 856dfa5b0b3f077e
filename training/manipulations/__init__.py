"""What a trained system does beside drawing from captions (variations, interpolation, edits): a file each; there is none yet."""
