"""Changes that make the parts of a file contradict one another, for each kind of cache."""

import copy

import torch


def contents(text, layer=0):
    found = text["layers"][layer]
    return found["contents"] or found["stored"]["layout"]


def slots(text, layer=0):
    return contents(text, layer)["slots"]


def number(name, value):
    def change(text, tensors):
        slots(text)[name] = value

    return change


def entry(name, at, value):
    def change(text, tensors):
        slots(text)[name][at] = value

    return change


def of_layer(name, value, layer=0):
    def change(text, tensors):
        text["layers"][layer][name] = value

    return change


def of_schedule(**values):
    def change(text, tensors):
        text["layers"][0]["schedule"].update(values)

    return change


def tensor(name, change):
    """Change a tensor of the first layer that evicts."""

    def changed(text, tensors):
        found = next(each for each in sorted(tensors) if each.endswith(name))
        tensors[found] = change(tensors[found])

    return changed


def both(change):
    """Change keys and values alike."""

    def changed(text, tensors):
        for name in ("contents.keys", "contents.values"):
            tensor(name, change)(text, tensors)

    return changed


def everywhere(change):
    def changed(text, tensors):
        for layer in text["layers"]:
            change(layer)

    return changed


def shared(text, tensors):
    rows = contents(text)
    del tensors[rows["values"]["tensor"]]
    rows["values"] = rows["keys"]


def longer_batch(text, tensors):
    """Another number of sequences in one layer, which fits within that layer."""
    for name in [each for each in tensors if each.startswith("layers.0.")]:
        tensors[name] = torch.cat([tensors[name]] * 2)
    slots(text)["batch"] *= 2
    slots(text)["lengths"] *= 2
    slots(text)["seen"] *= 2


def put(at, value):
    def change(found):
        found = found.clone()
        found.view(-1)[at] = value
        return found

    return change


def moved_between_heads(lengths):
    """The same sum, with a negative number in it."""
    both = int(lengths[0, 0] + lengths[0, 1])
    return put(1, both + 5)(put(0, -5)(lengths))


DENSE = {
    "no sequence": number("batch", 0),
    "more sequences": number("batch", 3),
    "negative batch": number("batch", -2),
    "no head": number("heads", 0),
    "more heads": number("heads", 4),
    "fewer heads": number("heads", 1),
    "negative count": number("held", -1),
    "held more": number("held", 10**9),
    "held huge": number("held", 10**30),
    "held fewer": number("held", 3),
    "moved more": number("moved", 10**6),
    "moved negative": number("moved", -1),
    "a length more": entry("lengths", 0, 26),
    "a length huge": entry("lengths", 0, 10**30),
    "a length fewer": entry("lengths", 1, 3),
    "a length negative": entry("lengths", 0, -1),
    "no lengths": number("lengths", []),
    "more lengths": number("lengths", [25, 25, 25]),
    "lengths of floats": number("lengths", [25.0, 25.0]),
    "a sequence has seen more": entry("seen", 0, 62),
    "a sequence has seen less": entry("seen", 0, 12),
    "a sequence has seen nothing": entry("seen", 0, 0),
    "a sequence has seen less than nothing": entry("seen", 1, -5),
    "a layer has seen nothing": of_layer("seen", 0),
    "a layer has seen less than nothing": of_layer("seen", -1),
    "a layer has seen more": of_layer("seen", 62),
    "all layers have seen too much": everywhere(lambda layer: layer.update(seen=2**40)),
    "all layers have seen less": everywhere(lambda layer: layer.update(seen=40)),
    "another layer": of_layer("index", 1),
    "a negative layer": of_layer("index", -1),
    "another batch": longer_batch,
    "nothing is held": of_layer("contents", None),
    "held and stored": lambda text, tensors: text["layers"][0].update(
        stored=text["layers"][0]["contents"]
    ),
    "decoded negative": of_schedule(decoded=-1),
    "decoded too many": of_schedule(decoded=4),
    "another window": of_schedule(window=3),
    "another turn": of_schedule(every=5),
    "one tensor twice": shared,
    "a tensor of no layer": lambda text, tensors: tensors.update(more=torch.zeros(1)),
    "an entry of no layer": lambda text, tensors: text.update(more=1),
    "a tensor named otherwise": lambda text, tensors: contents(text).update(
        keys={"rows": contents(text)["keys"]["tensor"]}
    ),
    "too many layers": lambda text, tensors: text["layers"].extend(text["layers"]),
    "too many kinds": lambda text, tensors: text["kinds"].extend(text["kinds"]),
    "too many of both": lambda text, tensors: [
        text[name].extend(copy.deepcopy(text[name])) for name in ("layers", "kinds")
    ],
    "layers by name": lambda text, tensors: text.update(layers={"0": text["layers"][0]}),
    "layers swapped": lambda text, tensors: text["layers"].reverse(),
    "keys of integers": tensor("contents.keys", lambda rows: rows.int()),
    "rows of integers": both(lambda rows: rows.int()),
    "keys of bytes": tensor("contents.keys", lambda rows: rows.to(torch.uint8)),
    "rows of five axes": both(lambda rows: rows[..., None]),
    "rows of three axes": both(lambda rows: rows[..., 0]),
    "fewer keys": tensor("contents.keys", lambda rows: rows[:, :, 1:]),
    "fewer rows": both(lambda rows: rows[:, :, 1:]),
    "no rows": both(lambda rows: rows[:, :, :0]),
    "one sequence of rows": both(lambda rows: rows[:1]),
    "positions of another dtype": tensor("slots.known", lambda found: found.long()),
    "positions of floats": tensor("slots.known", lambda found: found.float()),
    "a position beyond the text": tensor("slots.known", put(23, 61)),
    "a position far beyond the text": tensor("slots.known", put(23, 2**31 - 1)),
    "a position below padding": tensor("slots.known", put(0, -2)),
    "padding in the text": tensor("slots.known", put(5, -1)),
    "a position twice": tensor("slots.known", lambda found: put(5, int(found[0, 0, 4]))(found)),
    "positions in reverse": tensor("slots.known", lambda found: found.flip(-1)),
    "positions of three heads": tensor("slots.known", lambda found: found[:, [0, 1, 1]]),
    "more positions": tensor("slots.known", lambda found: torch.cat([found, found], -1)),
    "state of fewer heads": tensor("contents.state", lambda state: state[:, :2]),
    "state of fewer slots": tensor("contents.state", lambda state: state[:, :, :5]),
    "state of one sequence": tensor("contents.state", lambda state: state[:1]),
    "state of integers": tensor("contents.state", lambda state: state.int()),
    "queries of fewer heads": tensor("schedule.queries", lambda found: found[:, :2]),
    "queries of one sequence": tensor("schedule.queries", lambda found: found[:1]),
    "queries of another width": tensor("schedule.queries", lambda found: found[..., :3]),
    "no queries": tensor("schedule.queries", lambda found: found[:, :, :0]),
    "too many queries": tensor("schedule.queries", lambda found: found.repeat(1, 1, 500, 1)),
}
UNEVEN = {
    "a negative length": tensor("ragged.lengths", put(0, -1)),
    "two lengths that cancel": tensor(
        "ragged.lengths",
        lambda found: put(0, -5)(put(1, int(found[0, 0] + found[0, 1]) + 5)(found)),
    ),
    "a huge length": tensor("ragged.lengths", put(0, 2**40)),
    "a length more": tensor("ragged.lengths", lambda found: found + 1),
    "lengths of another shape": tensor("ragged.lengths", lambda found: found.view(1, -1)),
    "lengths of another dtype": tensor("ragged.lengths", lambda found: found.int()),
    "fewer keys": tensor("ragged.keys", lambda rows: rows[1:]),
    "narrow keys": tensor("ragged.keys", lambda rows: rows[:, :3]),
    "keys of integers": tensor("ragged.keys", lambda rows: rows.int()),
    "keys of three axes": tensor("ragged.keys", lambda rows: rows[..., None]),
    "positions in reverse": tensor("ragged.positions", lambda found: found.flip(0)),
    "a position of padding": tensor("ragged.positions", put(0, -1)),
    "a position beyond the text": tensor("ragged.positions", put(0, 1000)),
    "a position that is dense too": tensor("ragged.positions", put(28, 60)),
    "positions of another dtype": tensor("ragged.positions", lambda found: found.long()),
}
QUANTIZED = {
    "codes of another width": tensor("layout.keys", lambda codes: codes[..., :3]),
    "codes of floats": tensor("layout.keys", lambda codes: codes.float()),
    "fewer codes": tensor("layout.values", lambda codes: codes[:, :, 1:]),
    "residual rows of one sequence": lambda text, tensors: [
        tensor(f"residual.{name}", lambda rows: rows[:1])(text, tensors)
        for name in ("keys", "values")
    ],
    "fewer residual keys": tensor("residual.keys", lambda rows: rows[:, :, 1:]),
    "too many residual rows": lambda text, tensors: [
        tensor(f"residual.{name}", lambda rows: rows.repeat(1, 1, 9, 1))(text, tensors)
        for name in ("keys", "values")
    ],
    "residual rows of integers": tensor("residual.keys", lambda rows: rows.int()),
    "nothing is stored": of_layer("stored", None),
}
OFFLOADED = {name: DENSE[name] for name in ("held huge", "more heads", "a length more")}


def sliding(change):
    """Change the first layer that does not evict."""

    def changed(text, tensors):
        at = next(at for at, kind in enumerate(text["kinds"]) if kind != "PolicyLayer")
        change(text["layers"][at], tensors, f"layers.{at}.")

    return changed


def of_window(**values):
    return sliding(lambda layer, tensors, name: layer.update(values))


def rows_of_window(change, *names):
    def changed(layer, tensors, name):
        for each in names or ("keys", "values"):
            tensors[name + each] = change(tensors[name + each])

    return sliding(changed)


SLIDING = {
    "a huge window": of_window(sliding_window=10**9),
    "a negative window": of_window(sliding_window=-1),
    "another count": of_window(cumulative_length=60),
    "a negative count": of_window(cumulative_length=-1),
    "a count that is true": of_window(cumulative_length=True),
    "keys that are text": of_window(keys="abc"),
    "keys that are a list": of_window(keys=[1, 2]),
    "no keys": of_window(keys=None),
    "not begun": of_window(is_initialized=False),
    "begun by a number": of_window(is_initialized=1),
    "an attribute more": of_window(more=1),
    "a private attribute": of_window(_sliding_window_tensor=3),
    "a dtype that is none": of_window(dtype={"dtype": "nn"}),
    "a dtype that is a function": of_window(dtype={"dtype": "load"}),
    "a kind of attribute that is none": of_window(dtype={"import": "os"}),
    "keys of integers": rows_of_window(lambda rows: rows.int(), "keys"),
    "keys of three axes": rows_of_window(lambda rows: rows[0], "keys"),
    "fewer keys": rows_of_window(lambda rows: rows[:, :, 1:], "keys"),
    "one sequence": rows_of_window(lambda rows: rows[:1]),
    "more rows than tokens": rows_of_window(lambda rows: rows.repeat(1, 1, 9, 1)),
}


def linear(change):
    """Change the linear state of the first layer, which has attention too."""

    def changed(text, tensors):
        change(text["layers"][0]["linear"], tensors)

    return changed


def of_state(**values):
    return linear(lambda state, tensors: state.update(values))


LINEAR = {
    "no linear state": lambda text, tensors: text["layers"][0].pop("linear"),
    "a linear state that is a list": lambda text, tensors: text["layers"][0].update(linear=[]),
    "an attribute more": of_state(more=1),
    "an attribute of the attention": of_state(seen=61),
    "an attribute less": linear(lambda state, tensors: state.pop("record_past")),
    "more states": of_state(number_of_states=2),
    "no states": of_state(conv_states={"dict": []}),
    "states that are a number": of_state(recurrent_states=3),
    "states that have not begun": of_state(is_conv_states_initialized={"dict": [[0, False]]}),
    "begun, and no state": of_state(recurrent_states={"dict": [[0, None]]}),
    "a state that is a number": of_state(conv_states={"dict": [[0, 7]]}),
    "a state that is not used": of_state(has_previous_state={"dict": [[0, False]]}),
    "another kernel": of_state(conv_kernel_size={"dict": [[0, 3]]}),
    "a state that is too long": tensor("conv_states.0", lambda state: state.repeat(1, 1, 2)),
    "a state of one sequence": tensor("conv_states.0", lambda state: state[:1]),
    "a state without axes": tensor("conv_states.0", lambda state: state.sum()),
    "a state of integers": tensor("recurrent_states.0", lambda state: state.int()),
    "a kind of layer that has none": lambda text, tensors: text["kinds"].__setitem__(
        0, "PolicyLayer"
    ),
}
ATTACKS = [
    (kind, name, change)
    for kind, changes in {
        "dense": DENSE,
        "uneven": UNEVEN,
        "quantized": QUANTIZED,
        "offloaded": OFFLOADED,
        "sliding": SLIDING,
        "linear": LINEAR,
    }.items()
    for name, change in changes.items()
]
