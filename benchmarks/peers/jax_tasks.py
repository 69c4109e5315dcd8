"""What neural-tangents is timed at, in float32 for finite networks and in float64 for infinite ones."""

import jax
import numpy as np
from neural_tangents import NtkImplementation, empirical_ntk_fn, stax

VERSIONS = ("neural-tangents", "jax", "jaxlib")


def inputs(n, d, dtype="float32"):
    """The inputs of benchmarks/tasks.py."""
    return np.random.default_rng(0).standard_normal((n, d)).astype(dtype)


def layers(widths):
    """A ReLU network without biases, of weight variance 2."""
    dense = [stax.Dense(width, W_std=2**0.5) for width in widths[1:]]
    return stax.serial(*[layer for d in dense[:-1] for layer in (d, stax.Relu())], dense[-1])


def kernel(widths, n):
    """The full kernel by structured derivatives, compiled, with the weights of benchmarks/tasks.py."""
    initialise, apply, _ = layers(widths)
    x, generator = inputs(n, widths[0]), np.random.default_rng(2)
    _, empty = initialise(jax.random.PRNGKey(0), x.shape)
    shapes = [leaf.shape for leaf in jax.tree_util.tree_leaves(empty)]
    weights = [generator.standard_normal(shape[::-1]).astype("float32").T for shape in shapes]
    parameters = jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(empty), weights)
    structured = empirical_ntk_fn(
        apply, trace_axes=(), vmap_axes=0, implementation=NtkImplementation.STRUCTURED_DERIVATIVES
    )
    compiled = jax.jit(lambda x, parameters: structured(x, None, parameters).transpose(0, 2, 1, 3))
    x, parameters = jax.device_put((x, parameters))
    return lambda: compiled(x, parameters).block_until_ready()


def limit(n, d, depth):
    """The infinite-width kernel in float64, compiled."""
    jax.config.update("jax_enable_x64", True)
    _, _, analytic = layers([d] + [1] * depth)
    x = jax.device_put(inputs(n, d, "float64"))
    compiled = jax.jit(lambda x: analytic(x, None, "ntk"))
    return lambda: compiled(x).block_until_ready()


def limit_diagonal(n, d, depth):
    """Its diagonal."""
    kernel = limit(n, d, depth)
    return lambda: np.array(kernel()).diagonal()


def limit_off_diagonal(n, d, depth):
    """The rest of it."""
    kernel = limit(n, d, depth)
    return lambda: np.where(np.eye(n, dtype=bool), 0, np.array(kernel()))
