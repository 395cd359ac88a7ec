"""Files <-> `Image`. The only place that rescales intensities or touches orientation."""
