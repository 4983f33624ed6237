-- Roots are asked about when a model is loaded, those of shredded versions too.

DROP INDEX uploads_root;
CREATE INDEX uploads_root ON uploads (tenant, root) WHERE state IN ('promoted', 'shredded');
