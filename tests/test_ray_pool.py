"""Who is asked, who is waited for, who is replaced: with real actors that do next to nothing."""

import time

import pytest
import ray
from ray.exceptions import RayTaskError

from lightning_dqn.ray.cluster import connect
from lightning_dqn.ray.pool import ActorPool
from tests.ray_actors import Echo


@pytest.fixture(scope="module", autouse=True)
def _ray():
    disconnect = connect()
    yield
    disconnect()


@pytest.fixture
def make_pool():
    pools = []

    def make(num_actors, in_flight, **kwargs):
        kind = ray.remote(Echo).options(num_cpus=0)
        pools.append(ActorPool(lambda *who: kind.remote(*who, **kwargs), num_actors, in_flight))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def ask(pool, word, **kwargs):
    seat = pool.free_seat()
    pool.note(seat, seat.actor.say.remote(word, **kwargs), 3)
    return seat.index


def test_nobody_is_asked_for_more_than_may_be_in_flight(make_pool):
    pool = make_pool(2, 3)
    assert [ask(pool, k) for k in range(6)] == [0, 1, 0, 1, 0, 1]
    assert pool.free_seat() is None
    assert pool.steps_asked == 18
    seat, _ = pool.receive()
    assert pool.free_seat() is seat
    assert pool.steps_asked == 15
    # whoever has answered everything waits
    time.sleep(1)
    for seat in pool.seats:
        assert ray.get(seat.actor.count.remote()) == 3


def test_messages_of_an_actor_come_in_the_order_of_asking(make_pool):
    pool = make_pool(2, 4)
    for k in range(8):
        ask(pool, k, seconds=0.01 * (k % 3))
    heard = [pool.receive()[1] for _ in range(8)]
    for index in range(2):
        assert [word for who, _, word in heard if who == index] == list(range(index, 8, 2))


def test_a_slow_actor_is_not_waited_for_until_it_is_overtaken_too_often(make_pool):
    pool = make_pool(2, 1)
    ask(pool, "at once")
    pool.receive()  # both have started
    ask(pool, "warm")
    pool.receive()
    slow, quick = pool.seats
    pool.note(slow, slow.actor.say.remote("slow", seconds=3.0), 1)
    heard = []
    while "slow" not in heard:
        if not quick.requests:
            pool.note(quick, quick.actor.say.remote("quick"), 1)
        heard.append(pool.receive()[1][2])
    # 2 * num_actors * in_flight
    assert heard == ["quick"] * 4 + ["slow"]


def until_somebody_dies(pool):
    """The messages until then."""
    return list(iter(lambda: pool.receive()[1], None))


def test_an_actor_that_dies_is_replaced_and_what_it_had_sent_is_kept(make_pool):
    pool = make_pool(2, 2)
    victim, _ = pool.seats
    ask(pool, "sent")
    assert ray.get(victim.requests[0].answer) == (0, 0, "sent")
    victim.actor.end.remote()
    pool.note(victim, victim.actor.say.remote("lost"), 3)
    ask(pool, "of the other")
    with pytest.warns(UserWarning, match=r"^Actor 0 died and was replaced; what it had sent is kept: ActorDiedError"):
        heard = until_somebody_dies(pool)
    assert (0, 0, "sent") in heard
    assert (victim.incarnation, len(victim.requests)) == (1, 0)
    assert pool.free_seat() is victim
    ask(pool, "new")
    heard += [pool.receive()[1] for _ in range(3 - len(heard))]
    assert set(heard) == {(0, 0, "sent"), (1, 0, "of the other"), (0, 1, "new")}


def test_actors_that_die_again_and_again_end_the_run_with_the_reason(make_pool):
    pool = make_pool(1, 1, fails=True)

    def go_on():
        while True:
            ask(pool, "anything")
            pool.receive()

    with (
        pytest.warns(UserWarning, match="Actor 0 died and was replaced"),
        pytest.raises(RuntimeError, match=r"^collect: actor 0 died 4 times in a row without .*: OSError: no licence$"),
    ):
        go_on()


def test_what_an_actor_raises_is_raised_here_as_it_was(make_pool):
    pool = make_pool(1, 1)
    seat = pool.free_seat()
    pool.note(seat, seat.actor.fail.remote(), 1)
    with pytest.raises(ValueError, match=r"^data\.env_id: broken$") as raised:
        pool.receive()
    assert type(raised.value) is ValueError
    assert isinstance(raised.value.__cause__, RayTaskError)


def test_closing_ends_the_actors(make_pool):
    pool = make_pool(2, 1)
    ask(pool, "hello")
    pool.receive()
    actors = [seat.actor for seat in pool.seats]
    pool.close()
    for actor in actors:
        with pytest.raises(ray.exceptions.RayActorError):
            ray.get(actor.say.remote("anybody there?"), timeout=60)
