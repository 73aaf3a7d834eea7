"""What is counted, against counts made by hand and against what the rules have in common."""

import pytest

from bci_adapt.errors import InputError
from bci_adapt.learning import arithmetic
from bci_adapt.learning.cells.base import Network, cell
from bci_adapt.learning.credit.base import rule

GRU = Network(cell("gru"), n_inputs=96, n_hidden=128, n_outputs=4)
RECURRENT = 128 * (3 * (96 + 1 + 128) + 1)  # the candidate's state has a bias of its own
WEIGHTS = RECURRENT + 4 * 129


def test_a_prediction_reads_every_weight_once():
    assert arithmetic.prediction(GRU) == WEIGHTS == GRU.n_parameters


def test_a_lesson_of_immediate_derivatives_by_hand():
    # The readout's gradient and the error to its features; outer products; RMSprop.
    by_hand = 4 * 129 + 4 * 128 + RECURRENT + 6 * WEIGHTS
    assert arithmetic.lesson(GRU, rule("immediate")) == by_hand


def test_each_step_of_history_costs_a_forward_a_backward_and_an_outer_product():
    steps = [arithmetic.lesson(GRU, rule("window", steps=k)) for k in (1, 2, 3)]
    assert steps[1] - steps[0] == steps[2] - steps[1] == 2 * RECURRENT + 3 * 128 * 128
    recomputed = RECURRENT + 4 * 129
    assert steps[0] - arithmetic.lesson(GRU, rule("immediate")) == recomputed


def test_members_averages_and_turns():
    one = arithmetic.online(GRU, rule("window"))
    assert one == arithmetic.prediction(GRU) + arithmetic.lesson(GRU, rule("window"))
    assert arithmetic.online(GRU, rule("window"), n_members=3) == 3 * one
    turns = arithmetic.online(GRU, rule("window"), n_members=3, take_turns=True)
    assert 3 * one - turns == 2 * arithmetic.lesson(GRU, rule("window"))
    averaged = arithmetic.online(GRU, rule("window"), n_members=3, take_turns=True, averages=True)
    assert averaged - turns == 4 * WEIGHTS  # three more predictions, one average
    seldom = arithmetic.online(GRU, rule("window"), n_members=3, take_turns=True, learn_every=2)
    assert turns - seldom == arithmetic.lesson(GRU, rule("window")) / 2


def test_a_step_of_fine_tuning_by_hand():
    per_bin = WEIGHTS + 3 * 128 * 128 + RECURRENT + 4 * 129 + 4 * 128
    assert arithmetic.fine_tuning(GRU, n_members=3) == 3 * (16 * 80 * per_bin + 10 * WEIGHTS)


def test_a_rule_that_is_not_counted_is_refused():
    with pytest.raises(InputError, match=r"immediate and window, got 'rtrl'"):
        arithmetic.lesson(GRU, rule("rtrl"))


def test_a_second_stage_is_passed_inside_each_bin():
    two = Network(cell("gru_textbook"), n_inputs=96, n_hidden=128, n_outputs=4)  # its candidate reads v, not h
    by_hand = 4 * 129 + 4 * 128 + 128 * 128 + 128 * two.row_width + 6 * two.n_parameters
    assert arithmetic.lesson(two, rule("immediate")) == by_hand
    steps = [arithmetic.lesson(two, rule("window", steps=k)) for k in (1, 2)]
    assert steps[1] - steps[0] == 2 * 128 * two.row_width + 3 * 128 * 128
