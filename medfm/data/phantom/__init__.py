"""A generated thorax with known answers: radiographs and CTs, reports, masks, boxes, questions. Entry: `generate.generate`."""
