"""The model as parts: network x corruption x code x loss x penalties, in pure PyTorch."""
