-- Why a run ended early; null: it did not. A crawl that failed makes nothing fresh.
ALTER TABLE run ADD COLUMN failure text;
