"""Pictures that are drawn, with regions that are right by construction."""
