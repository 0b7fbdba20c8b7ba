"""Autoencoders by scikit-learn's conventions, trained in this process, without Ray."""

from hourglass.estimator.autoencoder import Autoencoder as Autoencoder
from hourglass.estimator.in_memory import InputError as InputError
