"""Ray as an executor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class RayExecutor:
    """Runs functions on a Ray cluster, and gives futures of `concurrent.futures`.

    Ray runs a task again whose worker died, up to `max_retries` times, which is 3 unless it is among the options.

    Args:
        **options: Those of `ray.remote`, such as `num_cpus=4`, `num_gpus=1` or `max_retries=5`.

    With it `bdl.ensembles.fit(make, 5, folder, x, y, executor=executor)` trains members on the cluster that `ray.init`
    found, each with a GPU of its own in this example.

    Example:
    >>> executor = RayExecutor(num_gpus=1, max_retries=5)
    """

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._shared: tuple[Any, Any] | None = None

    def submit(self, function: Callable[..., Any], /, *args: Any) -> Any:
        """Starts a call of a function.

        Args:
            function: What to call.
            *args: Its arguments. The first is sent once where several calls after each other have the same one.

        Returns:
            A `concurrent.futures.Future`.

        Raises:
            ImportError: if Ray is not installed.
        """
        try:
            import ray
        except ImportError as error:
            raise ImportError('RayExecutor needs Ray: pip install "keras-bdl[ray]".') from error
        if args:
            if self._shared is None or self._shared[0] is not args[0]:
                self._shared = args[0], ray.put(args[0])
            args = self._shared[1], *args[1:]
        task = ray.remote(function)
        return task.options(**self._options).remote(*args).future()
