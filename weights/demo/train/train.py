"""Train the demo model on the CPU for a given time.

    python train.py WORK_DIR --minutes 70            from the start
    python train.py WORK_DIR --minutes 130 --resume  go on from WORK_DIR/checkpoint.pt, up to 130 minutes in all

Writes the tokenizer files, checkpoint.pt (every few minutes) and log.jsonl into WORK_DIR.

Each step is shared among processes of one thread: they take small batches until the step has enough
tokens, then update the parameters, one at a time each. A core that is busy elsewhere slows only its
own process. The matrices inside the layers are trained with Muon (momentum, then the nearest
orthogonal matrix), all else with Adam. The rate is constant and falls to zero over the last part of
the time. Only what the assistant says is learned; words copied from the context weigh more.

With glibc, MALLOC_MMAP_THRESHOLD_=4000000000 MALLOC_TRIM_THRESHOLD_=4000000000 in the environment
makes it faster (memory is kept instead of returned).
"""

import argparse
import itertools
import json
import os
import random
import time
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
import numpy as np
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from tokenizers import Tokenizer

import corpus
import tokenizer as tokenizer_script
from model import Config, Model

LENGTH = 512  # the longest document
SMALL = 1024  # tokens in a small batch
TOKENS = 6144  # tokens in a step
MUON, ADAM = 0.02, 2e-3  # learning rates
WARMUP = 50  # steps
DECAY = 0.6  # the last part of the time, in which the rate falls to zero
QUANTISED_FROM = 0.85  # the experts train as MXFP4 from this part of the time
COPY_WEIGHT = 3.0  # of a slot word that stands in the context already
COPYING_STEPS = 150  # steps at the start that have many copying exercises


# --------------------------------------------------------------------------- data


class Encoder:
    """Turns documents into (ids, targets, weights); target -100 where nothing is to be learned."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.start = tokenizer.token_to_id("<|start|>")
        self.assistant = tokenizer.encode("assistant").ids[0]
        english, chinese = corpus.slot_words()
        self.slot = np.zeros(tokenizer.get_vocab_size(), bool)
        for word in [" " + word for word in english] + chinese:
            self.slot[tokenizer.encode(word).ids[0]] = True

    def __call__(self, documents):
        documents = iter(documents)
        while chunk := list(itertools.islice(documents, 200)):
            for encoding in self.tokenizer.encode_batch(chunk, add_special_tokens=False):
                yield self.encode(np.array(encoding.ids[: LENGTH + 1]))

    def encode(self, all_ids):
        ids, targets = all_ids[:-1], all_ids[1:].copy()
        first = np.zeros(self.slot.size, np.int64)
        first[all_ids[::-1]] = np.arange(len(all_ids))[::-1]  # where each token stands first
        copied = self.slot[targets] & (first[targets] <= np.arange(len(ids)))
        weights = np.where(copied, COPY_WEIGHT, 1.0).astype(np.float32)
        starts = list(np.flatnonzero(all_ids == self.start)) + [len(all_ids)]
        for begin, end in zip(starts, starts[1:]):  # other roles, and the opening of the first message
            if all_ids[begin + 1] != self.assistant:
                targets[max(begin - 1, 0): end + 1] = -100
        return ids, targets, weights


def batches(encoded, rng, pool=16):
    """Small batches (ids, targets, weights), each [documents, length], of documents of similar length."""
    while True:
        documents, count = [], 0
        for document in encoded:
            documents.append(document)
            count += len(document[0])
            if count >= pool * SMALL:
                break
        if not documents:
            return
        documents.sort(key=lambda d: len(d[0]))
        groups = [[]]
        for document in documents:
            if (len(groups[-1]) + 1) * len(document[0]) > SMALL:
                groups.append([])
            groups[-1].append(document)
        rng.shuffle(groups)
        for group in filter(None, groups):
            length = -(-max(len(d[0]) for d in group) // 8) * 8
            yield [torch.from_numpy(np.stack([np.pad(values, (0, length - len(values)), constant_values=fill) for values in part]))
                   for part, fill in zip(zip(*group), (0, -100, 0))]


def losses(model, ids, targets, weights):
    """(loss of each learned token, its weight, balance loss)"""
    x, balance = model(ids)
    keep = targets != -100
    return F.cross_entropy(model.lm_head(x[keep]), targets[keep], reduction="none"), weights[keep], balance


@torch.no_grad()
def evaluate(model, batches):
    """Mean loss per learned token, and of copied slot words alone."""
    parts = [losses(model, *batch)[:2] for batch in batches]
    loss, weights = (torch.cat(part) for part in zip(*parts))
    return loss.mean().item(), loss[weights > 1].mean().item()


# --------------------------------------------------------------------------- optimiser


def orthogonal(matrices, rounds=5):
    """Newton-Schulz iteration towards the nearest orthogonal matrices."""
    x = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    for _ in range(rounds):
        a = x @ x.mT
        x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
    return x.mT if tall else x


@torch.no_grad()
def update(p, grad, state, factor, step):
    """One step of Muon (one momentum in the state) or Adam (two)."""
    if len(state) == 1:
        state[0].lerp_(grad, 0.05)
        change = grad.lerp(state[0], 0.95)
        if p.dim() == 3 and p.shape[1] == 2 * p.shape[2]:  # gate and up are two matrices
            change = change.unflatten(1, (2, -1))
        p.sub_(orthogonal(change).reshape(p.shape), alpha=MUON * factor)
    else:
        mean, square = state
        mean.lerp_(grad, 0.1)
        square.lerp_(grad * grad, 0.02)
        size = (square / (1 - 0.98 ** (step + 1))).sqrt_().add_(1e-8)
        p.addcdiv_(mean, size, value=-ADAM * factor / (1 - 0.9 ** (step + 1)))


# --------------------------------------------------------------------------- training


class Shared:
    """What the processes share: parameters, their gradients (one set for each process), optimiser state, counters."""

    def __init__(self, model, processes):
        self.parameters = dict(model.named_parameters())
        for p in self.parameters.values():
            p.share_memory_()
        zeros = lambda p: torch.zeros_like(p.data).share_memory_()
        self.gradients = [{name: zeros(p) for name, p in self.parameters.items()} for _ in range(processes)]
        self.state = {name: [zeros(p) for _ in range(1 if name.endswith(("proj.weight", "gate_up_proj", "down_proj")) else 2)]
                      for name, p in self.parameters.items()}
        # The dearest first, for an even end.
        self.order = sorted(self.parameters, key=lambda name: (len(self.state[name]), -self.parameters[name].numel()))
        self.lock, self.barrier = mp.Lock(), mp.Barrier(processes)
        # step, rate factor, quantised, running; small batches and parameters taken; sums of weight, loss, tokens, copy loss, copies, balance
        self.numbers = torch.zeros(12, dtype=torch.double).share_memory_()

    def take(self, index, amount=1):
        with self.lock:
            before = self.numbers[index].item()
            self.numbers[index] += amount
            return before


STEP, FACTOR, QUANTISED, RUNNING, TAKEN, UPDATED, SUMS = range(7)


def work(rank, model, shared, tokenizer, seed):
    """One step after another, as long as the first process says so."""
    torch.set_num_threads(1)
    encoder, rng, numbers = Encoder(tokenizer), random.Random(seed), shared.numbers
    texts = batches(encoder(corpus.build(10**9, seed)), rng)
    exercises = batches(encoder(corpus.copying(10**9, seed)), rng)
    for name, p in model.named_parameters():
        p.grad = shared.gradients[rank][name]
    while True:
        yield
        shared.barrier.wait()
        if not numbers[RUNNING]:
            return
        step = int(numbers[STEP])
        model.quantise(bool(numbers[QUANTISED]))
        while shared.take(TAKEN, SMALL) < TOKENS:
            batch = next(exercises if step < COPYING_STEPS and rng.random() < 0.5 else texts)
            loss, weights, balance = losses(model, *batch)
            ((loss * weights).sum() + model.c.router_aux_loss_coef * balance * weights.sum()).backward()
            loss, balance = loss.detach(), balance.detach()
            copied = loss[weights > 1]
            sums = [weights.sum(), loss.sum(), len(loss), copied.sum(), len(copied), balance * len(loss)]
            with shared.lock:
                numbers[SUMS:] += torch.tensor([float(x) for x in sums], dtype=torch.double)
        shared.barrier.wait()
        while (i := int(shared.take(UPDATED))) < len(shared.order):
            name = shared.order[i]
            gradients = [g[name] for g in shared.gradients]
            update(shared.parameters[name], sum(gradients) / numbers[SUMS].item(), shared.state[name], numbers[FACTOR].item(), step)
            for gradient in gradients:
                gradient.zero_()
        shared.barrier.wait()


def helper(*args):
    for _ in work(*args):
        pass


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("--minutes", type=float, default=70)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if not args.resume:
        tokenizer_script.main(args.work)
    tokenizer = Tokenizer.from_file(str(args.work / "tokenizer.json"))
    config = Config(vocab_size=tokenizer.get_vocab_size())
    model = Model(config)
    shared = Shared(model, args.processes)
    numbers = shared.numbers
    step = tokens = used = 0
    if args.resume:
        saved = torch.load(args.work / "checkpoint.pt")
        model.load_state_dict(saved["model"])
        for name, parts in saved["state"].items():
            for part, value in zip(shared.state[name], parts):
                part.copy_(value)
        step, tokens, used = saved["step"], saved["tokens"], saved["seconds"]
    test = list(batches(Encoder(tokenizer)(corpus.held_out(100)), random.Random(0)))
    seeds = [1000 * (step + 1) + rank for rank in range(args.processes)]
    for rank in range(1, args.processes):
        mp.Process(target=helper, args=(rank, model, shared, tokenizer, seeds[rank]), daemon=True).start()
    mine = work(0, model, shared, tokenizer, seeds[0])
    log = open(args.work / "log.jsonl", "a" if args.resume else "w")
    began = last_save = time.time() - used
    seconds = lambda: time.time() - began

    def save():
        torch.save({"model": model.state_dict(), "state": shared.state, "step": step, "tokens": tokens, "seconds": seconds(),
                    "config": vars(config)}, args.work / "checkpoint.tmp")
        (args.work / "checkpoint.tmp").rename(args.work / "checkpoint.pt")

    next(mine)
    while (progress := seconds() / (args.minutes * 60)) < 1:
        numbers.zero_()
        numbers[STEP], numbers[RUNNING], numbers[QUANTISED] = step, 1, progress >= QUANTISED_FROM
        numbers[FACTOR] = factor = min(1, (step + 1) / WARMUP, (1 - progress) / DECAY)
        next(mine)
        weight, loss, count, copy, copies, balance = numbers[SUMS:].tolist()
        tokens += int(numbers[TAKEN]) - args.processes * SMALL
        if step % 20 == 0:
            row = {"step": step, "tokens": tokens, "seconds": round(seconds()), "rate": round(factor, 3), "loss": round(loss / count, 4),
                   "copy": round(copy / max(copies, 1), 4), "balance": round(balance / count, 3)}
            if step % 240 == 0:
                row["held_out"], row["held_out_copy"] = (round(x, 4) for x in evaluate(model, test))
            print(json.dumps(row), file=log, flush=True)
        step += 1
        if time.time() - last_save > 180:
            last_save = time.time()
            save()
    model.quantise(True)
    loss, copy = evaluate(model, test)
    print(json.dumps({"step": step, "tokens": tokens, "seconds": round(seconds()), "held_out": round(loss, 4),
                      "held_out_copy": round(copy, 4)}), file=log, flush=True)
    save()
    numbers.zero_()
    next(mine, None)


if __name__ == "__main__":
    main()
