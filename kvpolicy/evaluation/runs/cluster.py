"""Computes jobs on a Ray cluster: each worker loads the model once, and serves many jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Self

import attrs

from kvpolicy.errors import InvalidValueError, KvpolicyError, MissingPackageError, shown, told
from kvpolicy.evaluation.runs.engine import Job
from kvpolicy.evaluation.runs.row import Row
from kvpolicy.evaluation.runs.worker import Loader, Worker
from kvpolicy.options import count, natural

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def _loader(instance: object, option: attrs.Attribute[Any], value: Any) -> None:
    if not callable(value) or hasattr(value, "parameters"):
        raise InvalidValueError(
            "load must be a function that returns a model and its tokenizer, not "
            f"{shown(value)}. It is sent to the workers, and each calls it; a model is not sent."
        )


def _amount(instance: object, option: attrs.Attribute[Any], value: Any) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 2**20:
        raise InvalidValueError(
            f"{option.name!r} must be a number of at least 0, such as 1 or 0.5, not {shown(value)}"
        )


@attrs.define(kw_only=True, eq=False)
class RayEngine:
    """Computes jobs in workers on a Ray cluster while it is entered.

    - `load`: a function without arguments that returns the model and its tokenizer. Each worker
      calls it once.
    - `address`: of a cluster that runs; None takes the one that this process is connected to or
      that RAY_ADDRESS names, or else starts one on this machine.
    - `workers`: how many; None starts as many as the cluster has room for.
    - `num_gpus`, `num_cpus`: what a worker reserves; fractions of a GPU let workers share it. The
      default is one GPU if the cluster has any, and one CPU.
    - `retries`: how often a job is begun again after its worker died. Then its rows are errors.

    Raises MissingPackageError without Ray, and InvalidValueError for a cluster that does not answer
    or has no room, for a model that cannot be loaded and for what cannot be sent.
    """

    load: Loader = attrs.field(validator=_loader)
    address: str | None = None
    workers: int | None = attrs.field(default=None, validator=attrs.validators.optional(count))
    num_gpus: float | None = attrs.field(default=None, validator=attrs.validators.optional(_amount))
    num_cpus: float = attrs.field(default=1, validator=_amount)
    retries: int = attrs.field(default=3, validator=natural)
    tokenizer: PreTrainedTokenizerBase = attrs.field(init=False, repr=False)
    identity: Mapping[str, str] = attrs.field(init=False, repr=False)
    processes: list[int] = attrs.field(init=False, factory=list, repr=False)
    _workers: list[Any] = attrs.field(init=False, factory=list, repr=False)
    _new: Callable[[], Any] = attrs.field(init=False, repr=False)
    _started: bool = attrs.field(init=False, default=False, repr=False)

    def __enter__(self) -> Self:
        """Connect to the cluster, start the workers, and wait until each has loaded the model."""
        ray = _ray()
        load = _sendable(self.load, "the function that loads the model")
        self._connect(ray)
        try:
            self._start(ray, load)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *raised: object) -> None:
        """End the workers, and the cluster if it was started here."""
        ray = _ray()
        for worker in self._workers:
            ray.kill(worker)
        self._workers = []
        if self._started:
            ray.shutdown()
        self._started = False

    def rows(self, jobs: Iterable[Job]) -> Iterator[Row]:
        """Yield the rows of a job when its worker has computed them all."""
        ray = _ray()
        waiting, idle, running = iter(jobs), list(self._workers), dict[Any, _Running]()
        while True:
            for job in islice(waiting, len(idle)):
                run = _Running(idle.pop(), _sendable(job, f"a job of {job.metric.name!r}"), job)
                running[run.begun()] = run
            if not running:
                return
            [done], _ = ray.wait(list(running), num_returns=1)
            run = running.pop(done)
            rows = _received(ray, done)
            if rows is None:
                run.worker = self._replaced(ray, run.worker)
                run.died += 1
                if run.died <= self.retries:
                    running[run.begun()] = run
                    continue
                rows = run.given_up()
            idle.append(run.worker)
            yield from rows

    def _replaced(self, ray: Any, dead: Any) -> Any:
        """Start a worker in place of one that died; it loads the model with its first job."""
        ray.kill(dead)  # it may live on a node that cannot be reached now
        worker = self._new()
        self._workers[self._workers.index(dead)] = worker
        return worker

    def _connect(self, ray: Any) -> None:
        if ray.is_initialized():
            return
        try:
            ray.init(address=self.address, log_to_driver=False, logging_level="error")
        except Exception as error:  # Ray raises many kinds
            raise InvalidValueError(
                f"cannot connect to a Ray cluster at {shown(self.address)}: {told(error)}. Give "
                "the address of one that runs, or none to start one on this machine."
            ) from error
        self._started = True

    def _start(self, ray: Any, load: bytes) -> None:
        has = ray.cluster_resources()
        gpus = self.num_gpus
        if gpus is None:
            gpus = 1 if has.get("GPU", 0) >= 1 else 0
        remote = ray.remote(Worker).options(num_gpus=gpus, num_cpus=self.num_cpus)
        self._new = partial(remote.remote, load)
        self._workers = [self._new() for _ in range(self._room(has, gpus))]
        try:
            found = ray.get([worker.introduce.remote() for worker in self._workers])
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            if isinstance(cause, KvpolicyError):
                raise cause from None
            raise InvalidValueError(f"a worker could not load the model: {told(cause)}.") from cause
        self.tokenizer, self.identity = found[0]["tokenizer"], found[0]["identity"]
        self.processes = [each["process"] for each in found]

    def _room(self, has: Mapping[str, float], gpus: float) -> int:
        """Return how many workers to start; refuse more than the cluster has room for."""
        needs = {"CPU": self.num_cpus, "GPU": gpus}
        room = min(
            (int(has.get(name, 0) / each) for name, each in needs.items() if each), default=1
        )
        if room < (self.workers or 1):
            raise InvalidValueError(
                f"the cluster has {has.get('CPU', 0):g} CPUs and {has.get('GPU', 0):g} GPUs: no "
                f"room for {self.workers or 1} workers with {self.num_cpus:g} CPUs and {gpus:g} "
                "GPUs each. Ask for fewer workers or for less, or start more nodes first."
            )
        return self.workers or room


@attrs.define(eq=False)
class _Running:
    """A job that a worker has, and how often a worker died at it."""

    worker: Any
    sent: bytes
    job: Job
    died: int = 0

    def begun(self) -> Any:
        """Begin the job; return Ray's reference to the rows."""
        return self.worker.run.remote(self.sent)

    def given_up(self) -> list[Row]:
        """Return the rows of a job that ends its workers."""
        error = (
            f"WorkerDied: a worker died in this run, {self.died} times. It may lack memory: let "
            "each reserve more (--num-cpus, --num-gpus), so that fewer share a machine."
        )
        return [attrs.evolve(start, error=error) for start in self.job.starts]


def _received(ray: Any, done: Any) -> list[Row] | None:
    """Return the rows of a job; None if its worker died."""
    try:
        rows: list[Row] = ray.get(done)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, KvpolicyError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError:
        return None
    return rows


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise MissingPackageError(
            f"Ray cannot be imported: {error}. Install kvpolicy[ray]."
        ) from error
    return ray


def _sendable(what: object, name: str) -> bytes:
    try:
        sent: bytes = _ray().cloudpickle.dumps(what)
    except Exception as error:  # pickle raises whatever an object raises
        raise InvalidValueError(
            f"{name} cannot be sent to Ray's workers: {told(error)}. Use functions of modules, and "
            "policies and metrics that can be pickled, or leave --engine ray out."
        ) from error
    return sent
