@echo off
rem doitw ARGS: doit on this checkout, in its own environment (.venv), which the first call makes.
setlocal
set "PYTHONHOME="
set "PYTHONPATH="
set "root=%~dp0"
set "python=%root%.venv\Scripts\python.exe"
if not exist "%root%.venv\llamake.stamp" goto bootstrap
if not exist "%python%" goto bootstrap
"%python%" "%root%tasks\launch.py" %*
rem 75: the environment is out of date, and cannot be replaced while it runs.
if not %errorlevel%==75 exit /b %errorlevel%

:bootstrap
set "probe=import sys; sys.exit(sys.version_info < (3, 10))"
py -3 -I -c "%probe%" >nul 2>&1
if %errorlevel%==0 goto with_py
python -I -c "%probe%" >nul 2>&1
if %errorlevel%==0 goto with_python
>&2 echo ERROR: no usable Python
>&2 echo   why: neither py -3 nor python is Python 3.10 or newer
>&2 echo   fix: install it from python.org or with: winget install Python.Python.3.13
exit /b 3

:with_py
py -3 -I "%root%tasks\bootstrap.py" %*
exit /b %errorlevel%

:with_python
python -I "%root%tasks\bootstrap.py" %*
exit /b %errorlevel%
