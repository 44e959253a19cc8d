"""Which models can be had, from where and under which licence; and the files of those that are here."""
