"""The parts that researchers swap: attacker, learner and critic, each a small file that stands alone."""
