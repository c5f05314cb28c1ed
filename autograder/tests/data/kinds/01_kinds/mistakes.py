"""Wrong answers of every kind."""

import torch
import torch.distributed as dist

from autograder import mistake


class Recent:
    """What the wrong caches share."""

    def __init__(self, window):
        self.window, self.k, self.v = window, [], []

    def append(self, k, v):
        self.k.append(k)
        self.v.append(v)
        self.trim()
        return len(self.k)

    def trim(self):
        self.k, self.v = self.k[-self.window :], self.v[-self.window :]

    def attend(self, q):
        k, v = torch.stack(self.k), torch.stack(self.v)
        return (k @ q).softmax(0) @ v


@mistake("RecentKeys", says="You kept the first keys and dropped the new ones.")
class KeepsFirst(Recent):
    def trim(self):
        self.k, self.v = self.k[: self.window], self.v[: self.window]


@mistake("RecentKeys", says="You kept one key more than the window.")
class OneMore(Recent):
    def trim(self):
        self.k, self.v = self.k[-self.window - 1 :], self.v[-self.window - 1 :]


@mistake("RecentKeys", says="You never dropped a key.")
class KeepsAll(Recent):
    def trim(self):
        pass


@mistake("RecentKeys", says="You dropped old keys, but not their values.")
class ValuesStay(Recent):
    def trim(self):
        self.k = self.k[-self.window :]

    def attend(self, q):
        return (torch.stack(self.k) @ q).softmax(0) @ torch.stack(self.v[: len(self.k)])


@mistake("RecentKeys", says="The result is right, but old keys are only hidden: memory grows.", fails="StateBytes")
class OnlyHidden(Recent):
    def trim(self):
        pass

    def append(self, k, v):
        return min(super().append(k, v), self.window)

    def attend(self, q):
        k, v = torch.stack(self.k[-self.window :]), torch.stack(self.v[-self.window :])
        return (k @ q).softmax(0) @ v


def plain(target, draft, prompt, count):
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(target(tokens)[-1]))
    return tokens[len(prompt) :]


@mistake("speculate", says="The tokens are right, but the target was asked for each of them.", fails="ServedCalls")
def no_draft(target, draft, prompt, count):
    return plain(target, draft, prompt, count)


@mistake("speculate", says="You returned the draft and never asked the target.")
def no_target(target, draft, prompt, count):
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(draft[tokens[-1]]))
    return tokens[len(prompt) :]


@mistake("speculate", says="You returned the prompt as well.")
def with_prompt(target, draft, prompt, count):
    return [*prompt, *plain(target, draft, prompt, count)]


@mistake("speculate", says="You returned one token too few.")
def one_short(target, draft, prompt, count):
    return plain(target, draft, prompt, count)[:-1]


@mistake("speculate", says="You took the target's choice before the last token, not after it.")
def off_by_one(target, draft, prompt, count):
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(target(tokens)[-2]))
    return tokens[len(prompt) :]


def reduced(x, op=dist.ReduceOp.SUM):
    x = x.clone()
    dist.all_reduce(x, op=op)
    return x.chunk(dist.get_world_size())


@mistake("shard_sum", says="The part is right, but every rank received the whole sum.", fails="Traffic")
def whole_sum(x):
    return reduced(x)[dist.get_rank()].clone()


@mistake("shard_sum", says="Every rank returned the first part.")
def first_part(x):
    return reduced(x)[0].clone()


@mistake("shard_sum", says="You averaged in place of adding up.")
def averaged(x):
    return reduced(x)[dist.get_rank()] / dist.get_world_size()


@mistake("shard_sum", says="You returned your own numbers: nothing was exchanged.")
def alone(x):
    return x.chunk(dist.get_world_size())[dist.get_rank()].clone()


@mistake("shard_sum", says="You took the maximum.")
def largest(x):
    return reduced(x, dist.ReduceOp.MAX)[dist.get_rank()].clone()


@mistake("gate", says="Your gate is cut off from the graph: w gets no gradient.")
def detached_gate(x, w):
    return torch.sigmoid(x @ w).detach() * x


@mistake("gate", says="Your result has no graph.")
def no_graph(x, w):
    with torch.no_grad():
        return torch.sigmoid(x @ w) * x


@mistake("gate", says="You forgot to multiply by x.")
def gate_only(x, w):
    return torch.sigmoid(x @ w)


@mistake("gate", says="You used tanh.")
def other_gate(x, w):
    return torch.tanh(x @ w) * x


@mistake("gate", says="You transposed w.")
def transposed(x, w):
    return torch.sigmoid(x @ w.T) * x
