"""How good a corpus is: what is in it, where annotations disagree, and pictures to judge by eye."""
