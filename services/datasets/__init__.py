"""The datasets service: takes signed datasets in, keeps them sealed, gives proven ones out."""
