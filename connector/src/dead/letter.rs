//! Letters out of misfits (follows once the codec has landed).
