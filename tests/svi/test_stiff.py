"""Stiff equations: closed forms, another solver, gradients, and stories that call the solver."""

import keras
import numpy as np
import pytest
from gradients import gradient_of
from keras import ops
from scipy.integrate import solve_ivp

