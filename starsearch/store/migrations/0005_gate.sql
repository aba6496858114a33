-- Why a model's answers were not stored and the item's own sentences are its summary: counted by status, shown by explain.
ALTER TABLE summary ADD COLUMN gate_reason text, ADD COLUMN gate_detail text;
ALTER TABLE summary ADD CONSTRAINT summary_gate_reason CHECK (gate_reason IS NULL OR source = 'extractive');
CREATE INDEX summary_gated ON summary (gate_reason) WHERE gate_reason IS NOT NULL;
