"""The other way, for models whose layers are not plain attention: padded batches, with a cache of the model's own.

Whatever generates with transformers runs like this: right-padded to train (a causal model never sees what follows), left-padded
to sample, as its own ``generate`` does. Nothing is shared, so it costs what padding costs everywhere.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from mmc.trie.decode import Stream, take_drawn
from mmc.trie.model import CausalModel, TrieModel
from mmc.trie.pack import Ints

PADDING = 0
"""Any token will do: masked before a sequence, never seen after it."""


class PaddedModel(CausalModel):
    """Runs ``model`` on padded batches. Raises ValueError when that is not what it gives for one sequence at a time."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self._verify()

    def hidden_of(self, sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Ints, int]:
        if not sequences or not all(sequences):
            raise ValueError("nothing to compute: there must be at least one sequence, and none may be empty")
        ids_SL, mask_SL = _padded(sequences, left=False)
        output = self.backbone(
            input_ids=ids_SL.to(self.device), attention_mask=mask_SL.to(self.device), use_cache=False
        )
        hidden: Tensor = output.last_hidden_state.flatten(0, 1)
        return hidden, np.arange(ids_SL.numel()).reshape(ids_SL.shape), ids_SL.numel()

    @torch.no_grad()
    def _verify(self) -> None:
        """Compares training and sampling with one sequence at a time."""
        one, other = self.probe()
        rows = [one, other[:3]]
        hidden_NH, index_SL, _ = self.hidden_of(rows)
        sampling = _Batch(self.model, rows)
        ends = torch.stack([sampling.feed(None), sampling.feed([one[0]] * 2)]).float()
        for s, row in enumerate(rows):
            ids = torch.tensor([[*row, one[0]]], device=self.device)
            theirs = self.model(input_ids=ids, use_cache=False).logits[0].float()
            ours = self.logits(hidden_NH[torch.from_numpy(index_SL[s, : len(row)]).to(self.device)])
            if self.differs(ours, theirs[:-1]) or self.differs(ends[:, s], theirs[-2:]):
                name = type(self.model).__name__
                raise ValueError(f"{name} gives something else in a padded batch than for one sequence")


def causal_model(model: PreTrainedModel) -> CausalModel:
    """``model`` on the trie, or with a warning on padded batches. Raises ValueError when neither gives what it should."""
    try:
        return TrieModel(model)
    except ValueError as error:
        padded = PaddedModel(model)
        warnings.warn(f"{error}; it runs on padded batches, which share nothing and take longer", stacklevel=2)
        return padded


def padded_groups(lengths: Sequence[int], budget: int | None) -> list[list[int]]:
    """Indices of ``lengths`` in batches of at most ``budget`` tokens each, padding included (or one sequence)."""
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if groups and (budget is None or (len(groups[-1]) + 1) * lengths[groups[-1][0]] <= budget):
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def _padded(rows: Sequence[Sequence[int]], left: bool) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask (S, L) of ``rows``."""
    width = max(map(len, rows))
    gaps = [width - len(row) for row in rows]
    ids = [[PADDING] * gap * left + [*row] + [PADDING] * gap * (not left) for row, gap in zip(rows, gaps, strict=True)]
    mask = [[0] * gap * left + [1] * len(row) + [0] * gap * (not left) for row, gap in zip(rows, gaps, strict=True)]
    return torch.tensor(ids), torch.tensor(mask)


class _Batch:
    """Rows being generated together, with the model's own cache."""

    def __init__(self, model: Any, rows: Sequence[Sequence[int]]) -> None:
        self._model = model
        self._ids_SL, mask_SL = (tensor.to(model.device) for tensor in _padded(rows, left=True))
        positions_SL = (mask_SL.cumsum(dim=1) - 1).clamp(min=0)
        self._state: dict[str, Any] = {"attention_mask": mask_SL, "position_ids": positions_SL, "use_cache": True}

    def feed(self, tokens: Sequence[int] | None) -> Tensor:
        """Logits (S, V) after one more token a row; None: after the rows as they are."""
        if tokens is not None:
            self._ids_SL = torch.cat([self._ids_SL, self._ids_SL.new_tensor(tokens)[:, None]], dim=1)
        inputs = self._model.prepare_inputs_for_generation(
            self._ids_SL,
            next_sequence_length=None if tokens is None else 1,
            is_first_iteration=tokens is None,
            **self._state,
        )
        output = self._model(**inputs, logits_to_keep=1, return_dict=True)
        self._state = self._model._update_model_kwargs_for_generation(output, self._state)
        logits: Tensor = output.logits[:, -1]
        return logits


class PaddedDecoder:
    """Decodes streams as :class:`mmc.trie.decode.Decoder` does, a batch after the other; who comes late waits for the next."""

    def __init__(self, model: CausalModel, stops: frozenset[int], budget: int) -> None:
        self._model = model
        self._stops = stops
        self._budget = budget
        self._waiting: list[Stream] = []
        self._rows: list[Stream] = []
        self._batch: _Batch | None = None

    def add(self, streams: Sequence[Stream]) -> None:
        """Queues streams; they are admitted in this order."""
        self._waiting.extend(streams)

    def __bool__(self) -> bool:
        return bool(self._waiting or self._rows)

    @torch.no_grad()
    def step(self) -> list[Stream]:
        """One token more for every row of the batch, or the next batch; gives the streams that finished."""
        if self._batch is None:
            finished = self._admit()
            if not self._rows:
                return finished
            self._batch = _Batch(self._model.model, [[*s.prompt_ids, *s.ids] for s in self._rows])
            logits_SV = self._batch.feed(None)
            for stream in self._rows:
                stream.fed = len(stream.ids)
        else:
            finished = []
            logits_SV = self._batch.feed([self._feed(stream) for stream in self._rows])
        waiting = [(s, row) for row, s in enumerate(self._rows) if s.finish is None and s.fed == len(s.ids)]
        take_drawn(logits_SV.float(), waiting, self._stops)
        finished += [stream for stream, _ in waiting if stream.finish is not None]
        if all(stream.finish is not None for stream in self._rows):
            self._rows, self._batch = [], None
        return finished

    def _feed(self, stream: Stream) -> int:
        """The stream's next token, where it has one."""
        if stream.fed == len(stream.ids):
            return PADDING
        stream.fed += 1
        return stream.ids[stream.fed - 1]

    def _admit(self) -> list[Stream]:
        """Takes the next batch from those who wait; gives the streams that need no forward at all."""
        done: list[Stream] = []
        longest = 0
        while self._waiting:
            stream = self._waiting[0]
            width = max(longest, len(stream.prompt_ids) + stream.max_tokens)
            if self._rows and (len(self._rows) + 1) * width > self._budget:
                break
            del self._waiting[0]
            stream.take_forced(self._stops)
            if stream.finish is None:
                longest = width
                self._rows.append(stream)
            else:
                done.append(stream)
        return done
