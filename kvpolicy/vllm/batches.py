"""The requests of a batch, as vLLM's two model runners hold them."""

from __future__ import annotations

from typing import Any

from kvpolicy.vllm.step import Row


def rows_of(runner: Any, common: Any) -> list[Row]:
    """Return the rows of a batch; `common` is its CommonAttentionMetadata.

    All numbers are on the host: they are exact where no token is speculated.
    """
    bounds = common.query_start_loc_cpu.tolist()
    seen = common.seq_lens_cpu_upper_bound.tolist()
    return [
        Row(
            request=request,
            first=bounds[at],
            queries=bounds[at + 1] - bounds[at],
            seen=seen[at],
            prompt=prompt,
        )
        for at, (request, prompt) in enumerate(_requests(runner, common))
    ]


def _requests(runner: Any, common: Any) -> list[tuple[str, int]]:
    """Return the request and the length of its prompt for each row."""
    states = getattr(runner, "req_states", None)
    if states is not None:
        rows = common.req_idx.tolist()
        return [(states.index_to_req_id[row], int(states.prompt_len.np[row])) for row in rows]
    batch = runner.input_batch
    prompts = batch.num_prompt_tokens[: common.num_reqs].tolist()
    return list(zip(batch.req_ids[: common.num_reqs], prompts, strict=True))
