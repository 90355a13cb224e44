"""How a layer is evaluated under the posterior of its weights, and what makes a Keras layer linear."""
