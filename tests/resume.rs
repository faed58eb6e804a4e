//! Tests of resume.
