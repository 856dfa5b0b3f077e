"""A frozen CLIP: loading, identity, tokens, text towers."""
