"""The scheduler without a model: random operations, and after each of them every page has one owner."""

import random
from collections.abc import Sequence

import pytest

from moonlet.engine.pages import Pages
from moonlet.engine.scheduler import Plan, Scheduler, Task

SIZE = 4


def task(tokens: Sequence[int], **options: object) -> Task:
    return Task(list(tokens), list(tokens), **options)  # type: ignore[arg-type]


def check(scheduler: Scheduler) -> None:
    tasks = [*scheduler.running, *scheduler.waiting]
    scheduler.pages.check([t.own for t in tasks], [t.path for t in tasks])
    for waiting in scheduler.waiting:
        assert waiting.own == waiting.path == []
    for running in scheduler.running:
        room = len(running.pages) * scheduler.pages.page_size
        assert running.done <= room
        for i, node in enumerate(running.path):
            begin = i * scheduler.pages.page_size
            assert node.keys == tuple(running.keys[begin : begin + scheduler.pages.page_size])


class World:
    """Stands for the model: writes into pages what they should hold, and looks whether it is still there."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.rows: dict[tuple[int, int], int] = {}  # (page, place) -> key

    def compute(self, task: Task, begin: int, end: int) -> None:
        size = self.scheduler.pages.page_size
        for at in range(end):
            place = task.pages[at // size], at % size
            if at >= begin:
                assert task.pages[at // size] in task.own, "a shared page is written"
                self.rows[place] = task.keys[at]
            assert self.rows[place] == task.keys[at], "a page holds something else"

    def step(self, plan: Plan, rng: random.Random) -> None:
        for one in plan.decode:
            self.compute(one, len(one.tokens) - 1, len(one.tokens))
            self.scheduler.computed(one, len(one.tokens))
            one.append(rng.randrange(3))
        if plan.prefill:
            self.compute(plan.prefill, plan.begin, plan.end)
            self.scheduler.computed(plan.prefill, plan.end)
            if plan.prefill.state == "decode":
                plan.prefill.append(rng.randrange(3))


@pytest.mark.parametrize("seed", range(40))
def test_random_operations_lose_and_share_nothing(seed: int) -> None:
    """Few pages and few different tokens: much is shared, evicted and preempted."""
    rng = random.Random(seed)
    scheduler = Scheduler(Pages(rng.randint(6, 20), SIZE))
    world, alive = World(scheduler), []
    longest = scheduler.pages.count * SIZE
    limits: dict[int, int] = {}
    for _ in range(300):
        match rng.randrange(8):
            case 0 | 1:
                tokens = [rng.randrange(2) for _ in range(rng.randint(1, longest // 2))]
                uncut = (
                    [(b, b + 3) for b in range(0, len(tokens) - 3, 9)] if rng.random() < 0.3 else []
                )
                alive.append(task(tokens, uncut=uncut, after=rng.choice([None, *alive[-1:]])))
                limits[id(alive[-1])] = rng.randint(len(tokens) + 1, longest)
                scheduler.add(alive[-1])
            case 2 if alive:
                scheduler.end(alive.pop(rng.randrange(len(alive))))
            case _:
                plan = scheduler.plan(rng.randint(1, 9))
                check(scheduler)
                if plan:
                    world.step(plan, rng)
        for one in [one for one in alive if len(one.tokens) >= limits[id(one)]]:
            scheduler.end(one)
            alive.remove(one)
        check(scheduler)
    while alive:  # and every request comes to its end
        for _ in range(5000):
            plan = scheduler.plan(7)
            assert plan is not None, "requests wait for ever"
            world.step(plan, rng)
            over = [one for one in alive if len(one.tokens) >= limits[id(one)]]
            for one in over:
                scheduler.end(one)
                alive.remove(one)
            if over:
                break
        else:
            pytest.fail("no request ended in 5,000 steps")
        check(scheduler)
    assert scheduler.pages.available == scheduler.pages.count


def run(scheduler: Scheduler, steps: int = 1, chunk: int = 100) -> list[Plan]:
    world, rng, plans = World(scheduler), random.Random(0), []
    world.rows = getattr(scheduler, "rows", {})
    scheduler.rows = world.rows  # type: ignore[attr-defined]
    for _ in range(steps):
        if plan := scheduler.plan(chunk):
            world.step(plan, rng)
            plans.append(plan)
    return plans


def test_a_second_prompt_computes_only_what_is_new() -> None:
    scheduler = Scheduler(Pages(10, SIZE))
    first, second = task(range(11)), task([*range(9), 77, 78])
    scheduler.add(first)
    run(scheduler)
    scheduler.add(second)
    assert run(scheduler)[0].begin == 8
    assert second.reused == 8


@pytest.mark.parametrize(
    ("tokens", "at"),
    [
        (range(11), None),  # the same
        (range(6), None),  # ends earlier
        ([*range(6), 99, 7], 6),
        ([*range(4), 99], 4),  # right behind a page
        ([0, 1, 99], 2),
        ([0, 99, 2], None),  # one token in common is too few
        ([99, 1], None),
        ([*range(8), 99], None),  # what came there was never full
    ],
)
def test_where_a_prompt_differs_from_others(tokens: Sequence[int], at: int | None) -> None:
    scheduler = Scheduler(Pages(20, SIZE))
    for first in (range(11), [0, 1, 50, 51, 52]):
        scheduler.add(task(first))
        run(scheduler)
    later = task(tokens)
    scheduler.add(later)
    run(scheduler)
    assert later.differs_at == at


def test_the_last_token_is_always_computed() -> None:
    scheduler = Scheduler(Pages(10, SIZE))
    for _ in range(2):
        scheduler.add(task(range(8)))
        plan = run(scheduler)[0]
    assert (plan.begin, plan.end) == (4, 8)


def test_a_long_prompt_and_a_short_one_take_turns() -> None:
    scheduler = Scheduler(Pages(40, SIZE))
    scheduler.add(task(range(60)))
    scheduler.add(task(range(100, 105)))
    plans = run(scheduler, 3, chunk=10)
    assert [(p.begin, p.end) for p in plans] == [(0, 10), (0, 5), (10, 20)]
    assert [len(p.decode) for p in plans] == [0, 0, 1]


def test_answers_to_one_prompt_wait_for_it_and_share_it() -> None:
    scheduler = Scheduler(Pages(40, SIZE))
    first = task(range(20))
    others = [task(range(20), after=first) for _ in range(3)]
    for one in (first, *others):
        scheduler.add(one)
    later = task(range(50, 53))
    scheduler.add(later)
    run(scheduler, 2, chunk=8)
    assert [one.state for one in others] == ["waiting"] * 3
    assert later.state == "decode"  # who waits for another prompt does not hold up the rest
    run(scheduler, 8, chunk=8)
    assert [one.reused for one in others] == [16] * 3


def test_the_youngest_makes_room_and_goes_on_where_it_was() -> None:
    scheduler = Scheduler(Pages(4, SIZE))
    old, young = task(range(7)), task(range(100, 107))
    scheduler.add(old)
    scheduler.add(young)
    run(scheduler, 4)
    made = list(young.tokens)
    assert (old.state, young.state) == ("decode", "waiting")
    assert scheduler.preemptions == 1
    scheduler.end(old)
    plan = run(scheduler)[0]
    assert plan.prefill is young
    assert plan.begin == 4  # its full page was still there
    assert young.tokens[: len(made)] == made


def test_what_must_not_be_cut_is_computed_in_one_step() -> None:
    scheduler = Scheduler(Pages(20, SIZE))
    picture = task(range(40), uncut=[(3, 9), (9, 30)])
    scheduler.add(picture)
    plans = run(scheduler, 4, chunk=5)
    assert [(p.begin, p.end) for p in plans] == [(0, 3), (3, 9), (9, 30), (30, 35)]
    scheduler.end(picture)
    again = task(range(31), uncut=[(3, 9), (9, 30)])
    scheduler.add(again)
    assert run(scheduler)[0].begin == 0  # a match that ends inside a picture is of no use


def test_it_admits_no_more_than_there_is_room_for() -> None:
    scheduler = Scheduler(Pages(4, SIZE))
    scheduler.add(task(range(12)))
    scheduler.add(task(range(50, 62)))
    run(scheduler, 3)
    assert [one.state for one in scheduler.waiting] == ["waiting"]
    check(scheduler)
